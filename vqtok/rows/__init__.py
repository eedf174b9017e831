"""Rows of data sets as people have them: media with what belongs to them, from tars, tables, archives and lists."""
