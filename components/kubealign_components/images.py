"""Container images of the components: the only place that knows their names and tag.

A component bakes its image into the compiled pipeline; a run file can name a mirror or a digest
instead, and the compiler swaps it in.
"""

from kubealign_components import __version__

DATA = f"kubealign/data:{__version__}"
SAMPLE = f"kubealign/sample:{__version__}"
TRAIN = f"kubealign/train:{__version__}"
IMAGE_VARIABLE = "KUBEALIGN_IMAGE"
"""Environment variable of a task: the image that it runs in, for the manifest of what it makes."""
USER = 10001
"""The user of all images, in group 0; a container may run as any other."""
