"""How far the similarities of pictures, by a model, follow those of their texts, by the graph."""
