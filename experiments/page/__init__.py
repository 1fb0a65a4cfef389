"""A local web page on trained models: search a folder, caption images, see where words look."""
