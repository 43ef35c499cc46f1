"""The two-stage distiller: teach once, learn as often as you like."""
