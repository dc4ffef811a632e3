//! The service manager of Windows.

use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::Duration;

use windows_service::service::{
    Service, ServiceAccess, ServiceAction, ServiceActionType, ServiceControl, ServiceControlAccept,
    ServiceErrorControl, ServiceExitCode, ServiceFailureActions, ServiceFailureResetPeriod,
    ServiceInfo, ServiceStartType, ServiceState, ServiceStatus, ServiceType,
};
use windows_service::service_control_handler::{
    self, ServiceControlHandlerResult, ServiceStatusHandle,
};
use windows_service::service_manager::{ServiceManager, ServiceManagerAccess};
use windows_service::{define_windows_service, service_dispatcher};

use super::super::{check, log, run};
use super::Failure;
use crate::admin::socket_path;
use crate::control::signals::{self, Signal};
use crate::control::systemd::{self, Progress};
use crate::sys::clock::Clock;
use crate::sys::{files, process};

/// Its name among the services.
const NAME: &str = "flowgate";

/// The file that it logs to, beside that of its [control](socket_path).
const LOG: &str = "flowgate.log";

/// Whom it runs as: it needs no more than sockets.
const ACCOUNT: &str = r"NT AUTHORITY\LocalService";

/// How long the service manager is to wait for listeners to be bound.
const TIME_TO_START: Duration = Duration::from_secs(60);

/// How much longer than its drain a stop may take.
const TIME_TO_STOP: Duration = Duration::from_secs(10);

/// How often it is asked whether the service has started.
const STEP: Duration = Duration::from_millis(100);

/// The longest time that it can be told.
const MAX_WAIT_HINT: Duration = Duration::from_millis(u32::MAX as u64);

/// How long it waits before it starts a service again that has failed.
const TIME_TO_RESTART: Duration = Duration::from_secs(1);

/// After how long without a failure all of them are forgotten.
const TIME_TO_FORGET: Duration = Duration::from_secs(24 * 3_600);

/// The configuration of the service that this process is.
static CONFIG: OnceLock<PathBuf> = OnceLock::new();

/// By which the service manager is told how far it is.
static MANAGER: OnceLock<ServiceStatusHandle> = OnceLock::new();

/// Whether it has been told that the service stops, after which nothing but its end is told: to be
/// held while it is told something.
static IS_STOPPING: Mutex<bool> = Mutex::new(false);

/// Whether it ends with an error.
static HAS_FAILED: AtomicBool = AtomicBool::new(false);

define_windows_service!(service_entry, serve);

pub(super) fn install(config: &Path) -> Result<(), Failure> {
    // The service runs in another directory.
    let config = std::path::absolute(config)?;
    check::run(&check::CheckArguments::of(Some(config.clone())))?;
    let info = ServiceInfo {
        name: NAME.into(),
        display_name: "Flowgate".into(),
        service_type: ServiceType::OWN_PROCESS,
        start_type: ServiceStartType::AutoStart,
        error_control: ServiceErrorControl::Normal,
        executable_path: std::env::current_exe()?,
        launch_arguments: vec!["service".into(), "run".into(), config.into_os_string()],
        dependencies: Vec::new(),
        account_name: Some(ACCOUNT.into()),
        account_password: None,
    };
    let service = manager(ServiceManagerAccess::CREATE_SERVICE)?
        .create_service(&info, ServiceAccess::CHANGE_CONFIG | ServiceAccess::START)
        .map_err(explain)?;
    service.set_description("A UDP load balancer").map_err(explain)?;
    if let Err(error) = restart_after_failures(&service) {
        let Failure(reason) = explain(error);
        eprintln!("warning: it will not be started again after a failure: {reason}");
    }
    println!(
        "installed; `flowgate service start` starts it, and so does the next start of Windows"
    );
    Ok(())
}

/// Has the service manager start it again, whether it crashes or ends with an error.
fn restart_after_failures(service: &Service) -> windows_service::Result<()> {
    let restart = ServiceAction { action_type: ServiceActionType::Restart, delay: TIME_TO_RESTART };
    service.update_failure_actions(ServiceFailureActions {
        reset_period: ServiceFailureResetPeriod::After(TIME_TO_FORGET),
        reboot_msg: None,
        command: None,
        // The last is for all that follow.
        actions: Some(vec![restart]),
    })?;
    service.set_failure_actions_on_non_crash_failures(true)
}

pub(super) fn uninstall() -> Result<(), Failure> {
    open(ServiceAccess::DELETE)?.delete().map_err(explain)?;
    println!("uninstalled; one that runs goes on until it is stopped");
    Ok(())
}

pub(super) fn start() -> Result<(), Failure> {
    let service = open(ServiceAccess::START | ServiceAccess::QUERY_STATUS)?;
    service.start::<&OsStr>(&[]).map_err(explain)?;
    let clock = Clock::start();
    loop {
        match service.query_status().map_err(explain)?.current_state {
            ServiceState::StartPending if clock.uptime() < TIME_TO_START => {
                std::thread::sleep(STEP);
            }
            ServiceState::StartPending => {
                println!("starting; see `flowgate status`");
                return Ok(());
            }
            ServiceState::Stopped => {
                let log = socket_path::of_service().with_file_name(LOG);
                return Err(Failure(format!("it ended at once; see {}", log.display())));
            }
            _ => {
                println!("started; see `flowgate status`");
                return Ok(());
            }
        }
    }
}

pub(super) fn stop() -> Result<(), Failure> {
    open(ServiceAccess::STOP)?.stop().map_err(explain)?;
    println!("stopping when the flows have ended");
    Ok(())
}

/// What Windows starts.
pub(super) fn run(config: PathBuf) -> Result<(), Failure> {
    let _ = CONFIG.set(config);
    service_dispatcher::start(NAME, service_entry).map_err(explain)
}

fn manager(access: ServiceManagerAccess) -> Result<ServiceManager, Failure> {
    let access = access | ServiceManagerAccess::CONNECT;
    ServiceManager::local_computer(None::<&str>, access).map_err(explain)
}

fn open(access: ServiceAccess) -> Result<Service, Failure> {
    manager(ServiceManagerAccess::CONNECT)?.open_service(NAME, access).map_err(explain)
}

/// What the service manager says, with what it says of the cause.
fn explain(error: windows_service::Error) -> Failure {
    match &error {
        windows_service::Error::Winapi(cause) => Failure(format!(
            "the service manager: {cause}; run this as an administrator, and see `sc query {NAME}`"
        )),
        _ => Failure(error.to_string()),
    }
}

/// Serves until the service manager says to stop.
fn serve(_arguments: Vec<OsString>) {
    log_to_a_file();
    let Ok(manager) = service_control_handler::register(NAME, obey) else { return };
    let _ = MANAGER.set(manager);
    tell(ServiceState::StartPending, TIME_TO_START);
    systemd::report_to(|progress| match progress {
        Progress::Ready => tell(ServiceState::Running, Duration::ZERO),
        Progress::Stopping(drain) => {
            tell(ServiceState::StopPending, drain.saturating_add(TIME_TO_STOP));
        }
    });
    let outcome = match CONFIG.get() {
        Some(config) => run::run(config),
        None => Err(Failure("no configuration is named".to_owned())),
    };
    if let Err(Failure(reason)) = &outcome {
        eprintln!("{reason}");
    }
    log::flush();
    HAS_FAILED.store(outcome.is_err(), Ordering::Relaxed);
    tell(ServiceState::Stopped, Duration::ZERO);
}

/// Does what the service manager says.
fn obey(control: ServiceControl) -> ServiceControlHandlerResult {
    match control {
        ServiceControl::Stop => {
            // Who has asked is told at once, and then how long it may take.
            tell(ServiceState::StopPending, TIME_TO_STOP);
            signals::raise(Signal::Stop);
        }
        ServiceControl::Shutdown => {
            tell(ServiceState::StopPending, TIME_TO_STOP);
            signals::raise(Signal::StopNow);
        }
        ServiceControl::ParamChange => signals::raise(Signal::Reload),
        ServiceControl::Interrogate => {}
        _ => return ServiceControlHandlerResult::NotImplemented,
    }
    ServiceControlHandlerResult::NoError
}

/// Tells the service manager how far the service is, and how long that may take.
fn tell(current_state: ServiceState, wait_hint: Duration) {
    let mut is_stopping = IS_STOPPING.lock().unwrap_or_else(PoisonError::into_inner);
    let is_end = matches!(current_state, ServiceState::StopPending | ServiceState::Stopped);
    if *is_stopping && !is_end {
        // A reload has ended meanwhile.
        return;
    }
    *is_stopping = is_end;
    let controls_accepted = match current_state {
        ServiceState::Running => {
            ServiceControlAccept::STOP
                | ServiceControlAccept::SHUTDOWN
                | ServiceControlAccept::PARAM_CHANGE
        }
        // That of Windows does not wait for flows.
        ServiceState::StopPending => ServiceControlAccept::SHUTDOWN,
        _ => ServiceControlAccept::empty(),
    };
    let has_failed = HAS_FAILED.load(Ordering::Relaxed);
    let exit_code = match current_state {
        ServiceState::Stopped if has_failed => ServiceExitCode::ServiceSpecific(1),
        _ => ServiceExitCode::NO_ERROR,
    };
    let Some(manager) = MANAGER.get() else { return };
    // Nobody else could be told.
    let _ = manager.set_service_status(ServiceStatus {
        service_type: ServiceType::OWN_PROCESS,
        current_state,
        controls_accepted,
        exit_code,
        checkpoint: u32::from(!wait_hint.is_zero()),
        wait_hint: wait_hint.min(MAX_WAIT_HINT),
        process_id: None,
    });
}

/// A service has no standard error: it writes to a file.
fn log_to_a_file() {
    let path = socket_path::default_path().with_file_name(LOG);
    let opened = socket_path::prepare_directory(&path).and_then(|()| files::append_to(&path));
    // Without it nothing is logged.
    let _ = opened.and_then(process::log_to);
}
