"""The pre-trained miniatures of the package: made anew, and packed with a card each."""
