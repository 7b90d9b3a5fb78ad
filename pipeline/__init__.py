"""Stage one: sources -> texts -> encode -> neighbours -> graph, and the shards themselves.

the road        cli, settings, build: sources/ and scan/ (scans), number, layout or packing, write; then graph/,
                which encode/ and search/ serve
before it       estimate, costs, ranges, room
after it        built, info, preview/, undecodable
what is left    held_out, a test split; skipped, what was no use
underneath      work, the unfinished folder; parallel and threads; arrow; images; demo/, the embedded data set
"""
