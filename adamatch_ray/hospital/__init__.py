"""Answers as a hospital's archive takes them: DICOM made from reports and regions, and the archive itself."""
