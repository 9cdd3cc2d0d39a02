"""Compares the database with the journals of writer.py: is every acknowledged number there exactly once, every
unknown one at most once, none that met a conflict or that nobody wrote, and are each client's in the order written?
Prints one line of JSON; `problems` is empty if all is well.
"""
import argparse
import json
import os

from durus.connection import Connection

import common


def read_journal(path):
    told = {'A': [], 'U': [], 'C': []}
    with open(path) as file:
        for line in file:
            kind, number, at = line.split(' ')
            told[kind].append(int(number))
    return told


def problems_of(name, told, stored):
    problems = []
    if any(b <= a for a, b in zip(stored, stored[1:])):
        problems.append('%s: out of order or twice' % name)
    found = set(stored)
    lost = sorted(set(told['A']) - found)
    if lost:
        problems.append('%s: %d acknowledged and lost, the first %s' % (name, len(lost), lost[:5]))
    unwanted = sorted(found & set(told['C']))
    if unwanted:
        problems.append('%s: said to be in conflict and stored: %s' % (name, unwanted[:5]))
    strange = sorted(found - set(told['A']) - set(told['U']) - set(told['C']))
    if strange:
        problems.append('%s: stored and not in the journal: %s' % (name, strange[:5]))
    return problems


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--journal', required=True)
    common.add_source_options(parser)
    options = parser.parse_args()
    connection = Connection(common.open_source(options))
    writers = connection.get_root()['writers']
    result = {'acknowledged': 0, 'unknown': 0, 'unknown_stored': 0, 'stored': 0, 'problems': []}
    files = sorted(os.listdir(options.journal))
    for file in files:
        name = file[:-len('.journal')]
        told = read_journal(os.path.join(options.journal, file))
        stored = [number for chunk in writers[name] for number in chunk]
        result['problems'] += problems_of(name, told, stored)
        result['acknowledged'] += len(told['A'])
        result['unknown'] += len(told['U'])
        result['unknown_stored'] += len(set(told['U']) & set(stored))
        result['stored'] += len(stored)
    if not files:
        result['problems'].append('there are no journals in %s' % options.journal)
    print(json.dumps(result))


if __name__ == '__main__':
    main()
