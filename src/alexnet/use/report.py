def write_report(folder, dataset, split, evaluation): return folder.report
