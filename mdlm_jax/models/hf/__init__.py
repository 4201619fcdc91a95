"""Published checkpoints in and out: Hugging Face directories of safetensors, mapped leaf by leaf.

One file a family states, as a table, where each tensor of a file lies in our tree; reading and writing use the same
table. `reader.read` and `writer.write` stream, `families.identify` names the family of a ``config.json``.
"""
