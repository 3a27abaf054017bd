"""Passport files that somebody changed who knows their format."""

import hashlib
import json
import re

import numpy as np

BLOCK = 512  # bytes before the HDF5 file proper, with the checksum


def seal(path):
    """Writes the checksum anew, as somebody would who knows the format."""
    content = path.read_bytes()
    digest = hashlib.sha256(content[BLOCK:]).hexdigest().encode()
    start = re.search(rb"[0-9a-f]{64}", content[:BLOCK]).start()
    path.write_bytes(content[:start] + digest + content[start + 64 :])


def header(change):
    def damage(file):
        about = json.loads(file["header"][()].tobytes())
        change(about)
        del file["header"]
        text = json.dumps(about).encode()
        file["header"] = np.frombuffer(text, "uint8")

    damage.__name__ = "header"
    return damage
