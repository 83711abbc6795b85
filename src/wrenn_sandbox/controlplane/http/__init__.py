"""The HTTP edge: parsing, authentication, error envelopes, documents. Reaches everything else through use cases."""
