"""Every notebook's cells, as `nbdev_test` runs them, in less time.

    python tools/test_notebooks.py [options of nbdev_test]

It is nbdev_test in a process whose garbage collector looks less often: one that has imported torch, fastai and moto holds
millions of objects that stay (chapter core), and every notebook would go through them again and again.
"""
import gc

gc.set_threshold(100_000, 50, 100)

from nbdev.test import nbdev_test

if __name__ == '__main__': nbdev_test()
