"""Save and open results and studies as netCDF files with a digest, check their schema, and export tables."""
