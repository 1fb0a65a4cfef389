from datamodules import lazy_imports

lazy_imports.install()
