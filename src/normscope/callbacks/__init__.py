"""Callbacks for Lightning and the Trainer of transformers: telemetry, health checks, passports."""

from normscope.callbacks.averages import lightning_averages as lightning_averages
from normscope.callbacks.health import lightning_health as lightning_health
from normscope.callbacks.health import trainer_health as trainer_health
from normscope.callbacks.monitor import labels_of as labels_of
from normscope.callbacks.monitor import lightning_monitor as lightning_monitor
from normscope.callbacks.monitor import trainer_monitor as trainer_monitor
from normscope.callbacks.passport import lightning_passport as lightning_passport
from normscope.callbacks.passport import trainer_passport as trainer_passport
