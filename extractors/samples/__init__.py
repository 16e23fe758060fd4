"""What models read: pictures, texts, arrays, and the data sets of other libraries, as sources with a fixed order."""
