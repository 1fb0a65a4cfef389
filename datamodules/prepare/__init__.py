"""Made once, before training: checks, text databases, index files; and which data sets there are to do it for."""
