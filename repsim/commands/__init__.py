"""The commands, a file a subject: they read options, call one function of the library, and show what it returns."""
