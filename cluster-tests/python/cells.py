"""The objects that history.py works on. Each holds a mark, which tells who wrote it and how often it was written, so
that whoever finds it in a file, or loads it, knows of which transaction it is.

Run as a program, it writes a Durus file that holds the cells, as nobody's transaction.
"""
import sys

from durus.connection import Connection
from durus.file_storage import FileStorage
from durus.persistent import Persistent
from durus.persistent_list import PersistentList
from durus.utils import byte_string, str_to_int8
import durus.serialize

# Cells are counted up. Shelves hold cells of their own, which come and go.
CELLS = 24
SHELVES = 4
MARK = 'PMTAG:'

# The judge looks for marks in the records as they are: stock Durus can leave them uncompressed.
durus.serialize.WRITE_COMPRESSED_STATE_PICKLES = False


class Cell(Persistent):

    def __init__(self, tag, links=()):
        self.mark = make_mark(tag, 1)
        self.links = list(links)
        self.pad = ''


def make_tag(client, number):
    return '%016x%016x' % (client, number)


def make_mark(tag, count):
    return '%s%s%016x' % (MARK, tag, count)


def split_mark(mark):
    """tag, count"""
    digits = mark[len(MARK):]
    return digits[:32], int(digits[32:], 16)


def tag_in(record):
    """The tag in a record's bytes; None if there is no mark."""
    at = record.find(MARK.encode())
    if at < 0:
        return None
    at += len(MARK)
    return record[at:at + 32].decode()


def number(oid):
    return str_to_int8(oid)


def make(path):
    connection = Connection(FileStorage(path))
    root = connection.get_root()
    nobody = make_tag(0, 0)
    root['cells'] = PersistentList([Cell(nobody) for _ in range(CELLS)])
    root['shelves'] = PersistentList([Cell(nobody) for _ in range(SHELVES)])
    connection.commit()
    connection.get_storage().close()


if __name__ == '__main__':
    # The classes must be known under the name that the clients import them by.
    import cells
    cells.make(sys.argv[1])
    print('{}')
