"""Sources of samples for models: pictures, texts, arrays, and the data sets of other libraries, in a fixed order."""
