"""From files to checked, encoded, batched rows."""
