"""The nouns and contracts every part shares. A leaf: nothing of ours is imported here."""
