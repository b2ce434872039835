"""What must hold before a router listens: whoever can reach it needs a key, and its files can be used."""

import ipaddress
import ssl

from tandem.errors import SettingsError
from tandem.router import keys
from tandem.settings import RouterSettings


def check(settings: RouterSettings) -> None:
    """Refuse an address that others can reach and nothing guards, and files that are of no use.

    Raises:
        SettingsError: says which, and what to do.
    """
    if not (settings.keys or settings.insecure or loopback(settings.host)):
        raise SettingsError(
            f"{settings.host} can be reached from other machines, and callers need no key",
            "Set api_keys_file (TANDEM_API_KEYS_FILE) or TANDEM_API_KEY, or say --insecure",
        )
    if settings.api_keys_file is not None:
        keys.read(settings.api_keys_file)
    if settings.tls_cert is not None and settings.tls_key is not None:
        try:
            ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(settings.tls_cert, settings.tls_key)
        except OSError as exc:  # an SSLError is one, too
            raise SettingsError(
                f"the certificate {settings.tls_cert} with the key {settings.tls_key} cannot be used: {exc}",
                "Mend tls_cert and tls_key",
            ) from exc


def loopback(host: str) -> bool:
    """Whether only this machine reaches ``host``."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
