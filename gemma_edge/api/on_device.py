"""Loads a bundle's language model on an Android device. Imported only when needed: adb takes time to import."""

from __future__ import annotations

from dataclasses import replace

from device_harness.machines.device import connected_device
from device_harness.native.answer import DeviceConversation, DeviceSettings
from device_harness.native.client import Processor
from toolkit.runtime.bundle import Bundle
from toolkit.runtime.conversation import Conversation, Opener
from toolkit.runtime.session import SessionSettings

__all__ = ["DeviceSettings", "Processor", "open_on_device"]


def open_on_device(device: str | None, settings: DeviceSettings) -> Opener:
    """A function that loads a language model on a device; None: ANDROID_SERIAL's, else the only device."""

    def opener(bundle: Bundle, session: SessionSettings) -> Conversation:
        return DeviceConversation(bundle, connected_device(device), replace(settings, size=session.size))

    return opener
