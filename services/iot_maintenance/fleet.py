"""A simulated fleet: models, sites with weather and networks, and how a machine runs while nothing ails it."""

import math
from random import Random
from typing import NamedTuple

HOUR = 3600.0
DAY = 24 * HOUR


class Model(NamedTuple):
    """A make of machine: temperature (°C) and vibration (mm/s) at rest and by load, current (A) at full load."""

    name: str
    warmth: float
    warmth_by_load: float
    vibration: float
    vibration_by_load: float
    current: float


MODELS = (
    Model("pump-s", 38.0, 14.0, 1.4, 0.5, 8.0),
    Model("pump-l", 44.0, 20.0, 2.2, 0.9, 31.0),
    Model("fan", 30.0, 9.0, 2.9, 1.3, 12.0),
    Model("compressor", 58.0, 24.0, 3.6, 1.1, 58.0),
    Model("conveyor", 34.0, 12.0, 1.9, 1.5, 19.0),
    Model("mixer", 41.0, 17.0, 2.5, 0.7, 24.0),
)


class Site:
    """A hall: its weather, its working hours, and when its network is down."""

    def __init__(self, rng: Random, name: str, days: int) -> None:
        self.name = name
        self.opens, self.closes = rng.uniform(5, 8), rng.uniform(17, 23)
        self.swing = rng.uniform(1.5, 4.0)
        mood, self.offsets = 0.0, []
        for _ in range(days + 2):
            mood = 0.7 * mood + rng.gauss(0, 1.3)
            self.offsets.append(mood)
        for _ in range(max(1, round(days / 8))):  # some hot days in a row
            first, heat = rng.randrange(days), rng.uniform(4, 10)
            for day in range(first, min(first + rng.randint(1, 3), days + 2)):
                self.offsets[day] += heat
        self.outages: list[tuple[float, float]] = []
        for day in range(days):
            if rng.random() < 0.06:
                start = (day + rng.random()) * DAY
                self.outages.append((start, start + rng.uniform(0.3, 5) * HOUR))

    def weather(self, at: float) -> float:
        """How much warmer (°C) than usual the air is."""
        day, part = divmod(at / DAY, 1.0)
        today, tomorrow = self.offsets[int(day)], self.offsets[int(day) + 1]
        return today + (tomorrow - today) * part + self.swing * math.sin((part - 0.375) * math.tau)

    def work(self, at: float) -> float:
        """How much there is to do, 0 … 1."""
        day, part = divmod(at / DAY, 1.0)
        hour = part * 24
        busy = 1 / (1 + math.exp(-2 * (hour - self.opens))) - 1 / (1 + math.exp(-2 * (hour - self.closes)))
        return 0.3 + (0.35 if day % 7 >= 5 else 0.55) * busy

    def is_down(self, at: float) -> bool:
        """Whether nothing gets out."""
        return any(start <= at < end for start, end in self.outages)


class Machine:
    """One device in health. Times are seconds since the first midnight."""

    def __init__(self, rng: Random, name: str, site: Site, days: int) -> None:
        self.name, self.site, self.model = name, site, rng.choice(MODELS)
        self.phase = rng.uniform(0, 600)
        self.share = rng.uniform(0.75, 1.1)
        self.extra = rng.gauss(0, 2.5)
        self.roughness = rng.lognormvariate(0, 0.12)
        self.drift = rng.gauss(0, 0.12) / DAY if rng.random() < 0.15 else 0.0
        self.loss = 0.05 if rng.random() < 0.05 else 0.008
        self.inrush = rng.uniform(0.2, 1.0) / 144
        model = self.model
        self.max_temperature = round(model.warmth + model.warmth_by_load + 27, 1)
        self.max_vibration = round((model.vibration + model.vibration_by_load) * 1.75, 2)
        self.max_current = round(model.current * 1.25, 1)
        self.mood = 0.0
        self.warm = 0.0
        self.humps = [
            (start, start + rng.uniform(1, 3.5) * HOUR, rng.uniform(3, 8))
            for day in range(days)
            if rng.random() < 1 / 50
            for start in [(day + rng.random()) * DAY]
        ]
        """Passing troubles: an air inlet that is blocked for some hours, (start, end, °C)."""

    def run(self, rng: Random, at: float, weather: float, work: float) -> tuple[float, float, float]:
        """Temperature, vibration and current, one report after the last."""
        self.mood = 0.9 * self.mood + rng.gauss(0, 0.03)
        load = max(0.05, self.share * work + self.mood)
        self.warm += 0.35 * (load - self.warm)
        model = self.model
        temperature = model.warmth + self.extra + model.warmth_by_load * self.warm + weather + self.drift * at
        for start, end, heat in self.humps:
            if start <= at < end:
                temperature += heat * math.sin(math.pi * (at - start) / (end - start))
        vibration = self.roughness * (model.vibration + model.vibration_by_load * load)
        current = model.current * (0.2 + 0.7 * load) * (1 + rng.gauss(0, 0.025))
        if rng.random() < self.inrush:
            current = model.current * rng.uniform(1.1, 1.9)
        return temperature + rng.gauss(0, 0.6), vibration * (1 + rng.gauss(0, 0.07)), current
