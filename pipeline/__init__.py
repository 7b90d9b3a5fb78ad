"""Stage one: sources -> texts -> encode -> neighbours -> graph, and the shards themselves."""
