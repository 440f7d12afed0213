/** Several processes that train or measure one model together: started by mpirun or srun, connected by MPI. */
export { type MachineShare, machineShare } from './machine';
export {
  currentGroup,
  findMpi,
  findNccl,
  init,
  launchedRank,
  type MpiInfo,
  type NcclInfo,
  waitBeforeFailure,
} from './mpi';
export { firstAlone, gatherJson, type ProcessGroup } from './process-group';
