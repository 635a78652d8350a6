"""Makes files as an application has them: many small ones, a few large ones, half of the bytes compressible."""

import random
import sys
from pathlib import Path

root, count = Path(sys.argv[1]), int(sys.argv[2])
chance = random.Random(20261126)  # the same tree each time
words = b" ".join(b"%08x" % chance.getrandbits(20) for _ in range(4096))
for number in range(count):
    folder = root / f"{number % 97:02d}" / f"{number % 89:02d}"
    folder.mkdir(parents=True, exist_ok=True)
    size = min(int(chance.lognormvariate(8, 1.2)), 1 << 20)
    start = chance.randrange(len(words) // 2)
    text = (words[start:] + words) * (size // len(words) + 1)
    (folder / f"{number}.dat").write_bytes(chance.randbytes(size // 2) + text[: size - size // 2])
