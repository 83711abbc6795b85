"""The database: the only package that knows SQL. One module an aggregate, short transactions."""
