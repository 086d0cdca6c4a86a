"""A read-only view of the files of a zip or tar archive, or of a folder, whoever made it.

An archive is never unpacked: its files are listed by name and read one by one, so no name in it can reach the disk.
What could do harm is refused before anything is read: names that climb out or are absolute, links that lead out,
devices, encrypted files, too many files, files or totals larger than a data set has, and compression ratios that only
a bomb has. A compressed tar is first decompressed, within the same limits, into a file without a name, which
vanishes with the process.

Tolerated: one folder around everything, at any depth; the extra files of macOS and Windows; archives inside a folder,
which are read as if they were folders of their name (some sets come as several archives).
"""

from vlsm_adapter.data.archives.files import Limits, TreeFile
from vlsm_adapter.data.archives.tree import Tree, open_tree

__all__ = ["Limits", "Tree", "TreeFile", "open_tree"]
