"""Commands of `repsim`: each reads options, calls one function of the library and prints what it returns."""
