"""Files that come from elsewhere: downloads, releases."""
