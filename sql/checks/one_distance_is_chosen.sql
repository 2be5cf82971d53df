-- No distance, or several, that the calibrated verdict goes by: every count would be zero, or counted several times.
SELECT count(*) AS chosen FROM calibration WHERE chosen HAVING count(*) <> 1
