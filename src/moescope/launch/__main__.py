"""``python -m moescope.launch``: a worker process; see `moescope.launch.worker`."""

import sys

from moescope.launch.worker import main

sys.exit(main())
