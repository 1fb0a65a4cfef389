"""UNITER's image and text databases, read and written exactly as released."""
