"""Records of any source: files and folders of all kinds, the Hugging Face hub, TFDS.

source                       splits of a source, one after the other
files, hub                   which files there are, and of which split
formats, arrow, decoding     one file to columns
plain_text, splitting        divided, if they come without splits
records                      rows with our names that know where they stand
"""

from ftjax.data.sources.records import Records
from ftjax.data.sources.source import Division, Source, load_records

__all__ = ["Division", "Records", "Source", "load_records"]
