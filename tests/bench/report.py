"""Prints results of scripts/bench as Markdown: each figure is the median over the runs, with the least and the most.

python3 tests/bench/report.py RESULT.json...
"""

import json
import statistics
import sys


def figure(values, form="%.3g"):
    """The median, and the range where there is one."""
    text = form % statistics.median(values)
    low, high = form % min(values), form % max(values)
    return text if low == high else "%s (%s to %s)" % (text, low, high)


def verdict(of_runs):
    """One target over the runs: it is met when the median over them is."""
    first = of_runs[0]
    values = [each["value"] for each in of_runs]
    text = "%s %s, at most %.3g" % (figure(values), first["unit"].replace("x ", "× "), first["most"])
    return text if statistics.median(values) <= first["most"] else "**missed:** " + text


def main():
    runs = []
    for path in sys.argv[1:]:
        with open(path) as file:
            runs.append(json.load(file))
    if not runs:
        raise SystemExit(__doc__)
    for run in runs:
        about = run["about"]
        minutes = about["seconds"] / 60
        how = "`scripts/bench --quick`" if about["quick"] else "`scripts/bench`"
        print("- %s, %s: kernel %s, %d processors, %.0f minutes"
              % (about["started"], how, about["kernel"], about["processors"], minutes))
    shown = None
    # Not every run has every group.
    rows = {(row["group"], row["name"]): row for run in runs for row in run["rows"]}
    for key, row in rows.items():
        same = [other for run in runs for other in run["rows"] if (other["group"], other["name"]) == key]
        group = [other for other in rows.values() if other["group"] == row["group"]]
        systems = list(dict.fromkeys(system for r in group for system in r["medians"]))
        if row["group"] != shown:
            shown = row["group"]
            print("\n### %s\n" % (shown[0].upper() + shown[1:]))
            print("| | %s | against the target |" % " | ".join(systems))
            print("|---" * (len(systems) + 2) + "|")
        cells = []
        for system in systems:
            medians = [each["medians"][system] for each in same if system in each["medians"]]
            cells.append("%.3g" % statistics.median(medians) if medians else "")
        targets = [verdict([each["targets"][n] for each in same]) for n in range(len(row["targets"]))]
        print("| %s | %s | %s |" % (row["name"], " | ".join(cells), "; ".join(targets)))


main()
