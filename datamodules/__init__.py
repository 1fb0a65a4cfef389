from lightning_modules import lazy_imports

lazy_imports.install()
