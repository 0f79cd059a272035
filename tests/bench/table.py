"""Samples, medians, ratios, and what they should be."""

import json
import os
import platform
import statistics
import time


def met(verdict):
    return verdict["value"] <= verdict["most"]


def described(verdict):
    numbers = "%.2f %s of %.2f" if verdict["against"] else "%.4g %s of %.4g"
    text = numbers % (verdict["value"], verdict["unit"], verdict["most"])
    return text if met(verdict) else text + " MISSED"


class Row:
    """One kind of work. `target` is (system to compare with, most times its median), or (None, most, unit)."""

    def __init__(self, group, name, targets):
        self.group = group
        self.name = name
        self.targets = targets
        self.samples = {}

    def add(self, system, value):
        self.samples.setdefault(system, []).append(value)

    def median(self, system):
        values = self.samples.get(system)
        return statistics.median(values) if values else None


class Table:
    def __init__(self):
        self.rows = []
        self.started = time.strftime("%Y-%m-%dT%H:%M:%S%z")

    def row(self, group, name, *targets):
        for row in self.rows:
            if (row.group, row.name) == (group, name):
                return row
        row = Row(group, name, targets)
        self.rows.append(row)
        return row

    def verdicts(self, row):
        """For each target: what Karapace's median is to be compared with (a system, or None and a unit), what it is, and what
        it may be."""
        ours = row.median("karapace")
        for target in row.targets:
            if target[0] is None:
                _, most, unit = target
                yield {"against": None, "unit": unit, "value": ours, "most": most}
            else:
                other, most = target
                theirs = row.median(other)
                if theirs:
                    yield {"against": other, "unit": "x " + other, "value": ours / theirs, "most": most}

    def text(self):
        width = max(len(row.name) for row in self.rows)
        lines, group = [], None
        for row in self.rows:
            if row.group != group:
                group = row.group
                systems = list(dict.fromkeys(s for r in self.rows if r.group == group for s in r.samples))
                heads = "".join("  %-10s" % s for s in systems)
                lines += ["", group, "  %-*s%s  karapace against its targets" % (width, "", heads)]
            cells = ""
            for system in systems:
                median = row.median(system)
                cells += "  %-*s" % (max(10, len(system)), "" if median is None else "%.4g" % median)
            verdicts = ", ".join(described(verdict) for verdict in self.verdicts(row))
            lines.append("  %-*s%s  %s" % (width, row.name, cells, verdicts))
        return "\n".join(lines[1:])

    def missed(self):
        return sum(not met(verdict) for row in self.rows for verdict in self.verdicts(row))

    def write(self, path, about):
        rows = [
            {
                "group": row.group,
                "name": row.name,
                "samples": row.samples,
                "medians": {system: row.median(system) for system in row.samples},
                "targets": list(self.verdicts(row)),
            }
            for row in self.rows
        ]
        about = dict(about, started=self.started, kernel=platform.release(), processors=os.cpu_count())
        with open(path, "w") as file:
            json.dump({"about": about, "rows": rows}, file, indent=1)
