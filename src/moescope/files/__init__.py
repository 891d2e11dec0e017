"""The folders that moescope writes to, and the only way into them.

`claim` makes sure of three things before a byte is written: the folder is new, empty, or a result
of the same kind that moescope wrote; no other process writes it; it does not lie in what is read.
While it is held, `replacing`, `replacing_folder`, `own` and `remove` are how files come and go.
Each name is noted in the folder's ledger, ``moescope.sha256``, before the file is there, and its
checksum when it is. What is not in the ledger is somebody else's: it is never replaced, and never
removed. Nothing goes through a link. So a process that dies anywhere leaves whole files, and a
user's own file in a result outlives all that moescope does to it.

The ledger is what ``sha256sum -c`` takes. This module knows nothing of what the files hold.
"""

from moescope.files.claims import LOCK, claim
from moescope.files.ledger import (
    LEDGER,
    are_intact,
    is_intact,
    is_plain_name,
    plain_name,
    require_intact,
    sha256_of,
)
from moescope.files.lock import holder
from moescope.files.paths import usable_path, write_error
from moescope.files.writing import (
    checksum_of,
    drop_scratch,
    keep_scratch,
    nothing_of_bad_input,
    own,
    owned,
    remove,
    remove_result,
    replacing,
    replacing_folder,
    require_replaceable,
    scratch_folder,
    write_bytes,
)

__all__ = [
    "LEDGER",
    "LOCK",
    "are_intact",
    "checksum_of",
    "claim",
    "drop_scratch",
    "holder",
    "is_intact",
    "is_plain_name",
    "keep_scratch",
    "nothing_of_bad_input",
    "own",
    "owned",
    "plain_name",
    "remove",
    "remove_result",
    "replacing",
    "replacing_folder",
    "require_intact",
    "require_replaceable",
    "scratch_folder",
    "sha256_of",
    "usable_path",
    "write_bytes",
    "write_error",
]
