"""A stock client that asks for what has changed, and loads the root, again and again, until standard input ends.

Called with HOST:PORT. Prints as JSON how many times it did so, and in milliseconds the median and the longest of them.
"""
import argparse
import json
import select
import sys
import time

from durus.client_storage import ClientStorage
from durus.error import ReadConflictError


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument('server')
    host, port = parser.parse_args().server.rsplit(':', 1)
    storage = ClientStorage(host=host, port=int(port))
    took = []
    while not select.select([sys.stdin], [], [], 0)[0]:
        began = time.monotonic()
        storage.sync()
        try:
            storage.load(b'\0' * 8)
        except ReadConflictError:
            pass  # It has changed since: that is an answer, too.
        took.append(1000 * (time.monotonic() - began))
        time.sleep(0.005)
    took.sort()
    print(json.dumps({
        'reads': len(took),
        'median_ms': round(took[len(took) // 2], 1),
        'longest_ms': round(took[-1], 1),
    }))


if __name__ == '__main__':
    main()
