"""MAML, ANIL and MAML + LIL on your own images, three seeds each: one table and one picture.

photos/ has a folder for each class, at least 25 classes of 10 images. A killed run goes on when this is started again.
"""

import sys

from lightning_gp import compare

comparison = compare(
    ["class_folder_maml"],
    changes=["MAML:", "ANIL: model=ANIL", "MAML + LIL: model=LIL"],
    words=["--data.root=photos", *sys.argv[1:]],
    seeds=[0, 1, 2],
)
print(comparison.table("latex"))
