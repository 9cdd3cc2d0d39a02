"""Makes garbage: fills root['blobs'] with big objects and replaces all of them, round after round, so that a pack has
old records and unreachable objects to drop. Prints a digest of what must survive as one line of JSON.
"""
import argparse
import hashlib
import json
import os

from durus.persistent import Persistent
from durus.persistent_list import PersistentList

import common


def digest(blobs):
    sha = hashlib.sha1()
    for blob in blobs:
        sha.update(blob.data)
    return sha.hexdigest()


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--port', type=int, required=True)
    parser.add_argument('--objects', type=int, default=50)
    parser.add_argument('--size', type=int, default=20000, help='bytes of an object')
    parser.add_argument('--rounds', type=int, default=10)
    parser.add_argument('--check', action='store_true', help='only print the digest of what is there')
    options = parser.parse_args()
    connection = common.connect(options.port)
    root = connection.get_root()
    if not options.check:
        if 'blobs' not in root:
            root['blobs'] = PersistentList()
        for _ in range(options.rounds):
            fresh = []
            for _ in range(options.objects):
                blob = Persistent()
                blob.data = os.urandom(options.size)
                fresh.append(blob)
            root['blobs'][:] = fresh
            connection.commit()
            for blob in fresh[::2]:
                blob.data = os.urandom(options.size)
            connection.commit()
    print(json.dumps({'objects': len(root['blobs']), 'digest': digest(root['blobs'])}))
    common.close(connection)


if __name__ == '__main__':
    main()
