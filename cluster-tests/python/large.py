"""A stock client that stores objects of many megabytes, one in each commit, and another that reads them elsewhere.

Called with --write HOST:PORT, --read HOST:PORT and the sizes in bytes. Prints as JSON how long each commit took, in
seconds, and what was not read as it was written.
"""
import argparse
import hashlib
import json
import time

from durus.client_storage import ClientStorage
from durus.connection import Connection
from durus.persistent import Persistent


class Large(Persistent):

    def __init__(self, data):
        self.data = data


def connect(address):
    host, port = address.rsplit(':', 1)
    return Connection(ClientStorage(host=host, port=int(port)))


def data(number, size):
    """Bytes that differ from one large object to the next, and from one place in it to another."""
    block = b''.join(hashlib.sha256(b'%d %d' % (number, n)).digest() for n in range(2048))
    return (block * (size // len(block) + 1))[:size]


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument('--write', required=True)
    parser.add_argument('--read', required=True)
    parser.add_argument('sizes', type=int, nargs='+')
    options = parser.parse_args()
    writer, reader = connect(options.write), connect(options.read)
    took, wrong = [], []
    for number, size in enumerate(options.sizes):
        key = 'large %d' % number
        writer.get_root()[key] = Large(data(number, size))
        began = time.monotonic()
        writer.commit()
        took.append(round(time.monotonic() - began, 3))
        reader.abort()
        if reader.get_root()[key].data != data(number, size):
            wrong.append(key)
        writer.shrink_cache()
        reader.shrink_cache()
    print(json.dumps({'took_s': took, 'wrong': wrong}))


if __name__ == '__main__':
    main()
