"""How an edit happens: images, models, the sampler, the runtimes."""

import os

# Before torch is imported, which every road passes here. Threads that wait by spinning make an edit 2 to 5 times
# slower beside any other busy program (another worker, a second calibration), and cost 5 % less alone.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
