"""Where things lie: a folder of this machine, or a prefix in a bucket of an S3-compatible store, in the same words.

A local place is a `pathlib.Path`, so it costs what it always did. A `Remote` speaks as much of pathlib's language as the
package needs. Credentials and the server's address come from the environment alone (AWS_ACCESS_KEY_ID,
AWS_SECRET_ACCESS_KEY, AWS_SESSION_TOKEN, AWS_REGION, AWS_ENDPOINT_URL, or the role of the machine); nothing here keeps,
prints or sends them, and a URL that holds any is refused.
"""

from smscale.errors import Unreachable
from smscale.places.files import (
    file_to_write,
    folder_to_read,
    folder_to_write,
    remove,
    remove_all,
    walk,
    write_bytes,
    write_text,
)
from smscale.places.names import Place, given, is_remote, place, reach
from smscale.places.remote import Found, Remote
from smscale.places.server import told, zarr_root
from smscale.places.together import read_many, together

__all__ = [
    "Found",
    "Place",
    "Remote",
    "Unreachable",
    "file_to_write",
    "folder_to_read",
    "folder_to_write",
    "given",
    "is_remote",
    "place",
    "reach",
    "read_many",
    "remove",
    "remove_all",
    "together",
    "told",
    "walk",
    "write_bytes",
    "write_text",
    "zarr_root",
]
