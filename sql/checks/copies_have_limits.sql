-- No limits of a copy, or several: every count would be zero, or counted several times.
SELECT count(*) AS limits FROM copy_calibration HAVING count(*) <> 1
