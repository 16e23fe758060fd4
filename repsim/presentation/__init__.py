"""What figures and the report page both show, decided once: both draw what is decided here."""
