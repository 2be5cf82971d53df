-- A group whose size is not the number of its members.
SELECT group_id FROM duplicate_groups GROUP BY group_id HAVING count(*) <> any_value(size) OR min(size) <> max(size)
