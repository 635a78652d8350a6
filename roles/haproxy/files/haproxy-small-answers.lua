-- Managed by vmfleet.ops (haproxy); changes made by hand are undone.
-- HAProxy before 3.2 compresses answers of any size, and has decided so before its rules for answers are run. It leaves
-- alone what says how it is encoded, so that is said for it where it still looks; the configuration takes it off again.
core.register_action("leave_uncompressed", {"tcp-res"}, function(txn)
    txn.http:res_set_header("Content-Encoding", "identity")
end)
