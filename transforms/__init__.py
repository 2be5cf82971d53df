"""The transforms that Eidetic's pipelines are made of, and the lake that they read and write."""

import os

# Threads of OpenMP that wait for one another do so asleep. By default they spin, which beside other work on the machine costs
# many times what they compute. OpenMP looks at this once, when torch or faiss is imported: hence here, before either is, in
# every process that has to do with Eidetic, a worker's too. Who sets it otherwise is heard.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
