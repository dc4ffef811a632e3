//! The service manager of Windows.

use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::time::Duration;

use windows_service::service::{
    ServiceAccess, ServiceControl, ServiceControlAccept, ServiceErrorControl, ServiceExitCode,
    ServiceInfo, ServiceStartType, ServiceState, ServiceStatus, ServiceType,
};
use windows_service::service_control_handler::{self, ServiceControlHandlerResult};
use windows_service::service_manager::{ServiceManager, ServiceManagerAccess};
use windows_service::{define_windows_service, service_dispatcher};

use super::super::{log, run};
use super::Failure;
use crate::admin::socket_path;
use crate::control::signals::{self, Signal};
use crate::sys::{files, process};

/// Its name among the services.
const NAME: &str = "flowgate";

/// Whom it runs as: it needs no more than sockets.
const ACCOUNT: &str = r"NT AUTHORITY\LocalService";

/// How long the service manager is to wait for flows to end.
const TIME_TO_STOP: Duration = Duration::from_secs(3_600);

/// The configuration of the service that this process is.
static CONFIG: OnceLock<PathBuf> = OnceLock::new();

define_windows_service!(service_entry, serve);

pub(super) fn install(config: &Path) -> Result<(), Failure> {
    // The service runs in another directory.
    let config = std::path::absolute(config)?;
    flowgate_config::load(&config)?;
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
        .create_service(&info, ServiceAccess::CHANGE_CONFIG)
        .map_err(explain)?;
    service.set_description("A UDP load balancer").map_err(explain)?;
    println!(
        "installed; `flowgate service start` starts it, and so does the next start of Windows"
    );
    Ok(())
}

pub(super) fn uninstall() -> Result<(), Failure> {
    open(ServiceAccess::DELETE)?.delete().map_err(explain)?;
    println!("uninstalled; one that runs goes on until it is stopped");
    Ok(())
}

pub(super) fn start() -> Result<(), Failure> {
    open(ServiceAccess::START)?.start::<&OsStr>(&[]).map_err(explain)?;
    println!("starting; see `flowgate status`");
    Ok(())
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

fn open(access: ServiceAccess) -> Result<windows_service::service::Service, Failure> {
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
    let handler = |control| match control {
        ServiceControl::Stop => {
            signals::raise(Signal::Stop);
            ServiceControlHandlerResult::NoError
        }
        ServiceControl::Shutdown => {
            signals::raise(Signal::StopNow);
            ServiceControlHandlerResult::NoError
        }
        ServiceControl::ParamChange => {
            signals::raise(Signal::Reload);
            ServiceControlHandlerResult::NoError
        }
        ServiceControl::Interrogate => ServiceControlHandlerResult::NoError,
        _ => ServiceControlHandlerResult::NotImplemented,
    };
    let Ok(status) = service_control_handler::register(NAME, handler) else { return };
    let tell = |current_state, exit_code, wait_hint| {
        let controls_accepted = if current_state == ServiceState::Running {
            ServiceControlAccept::STOP
                | ServiceControlAccept::SHUTDOWN
                | ServiceControlAccept::PARAM_CHANGE
        } else {
            ServiceControlAccept::empty()
        };
        // Nobody else could be told.
        let _ = status.set_service_status(ServiceStatus {
            service_type: ServiceType::OWN_PROCESS,
            current_state,
            controls_accepted,
            exit_code: ServiceExitCode::Win32(exit_code),
            checkpoint: 0,
            wait_hint,
            process_id: None,
        });
    };
    tell(ServiceState::Running, 0, TIME_TO_STOP);
    let outcome = match CONFIG.get() {
        Some(config) => run::run(config),
        None => Err(Failure("no configuration is named".to_owned())),
    };
    if let Err(Failure(reason)) = &outcome {
        eprintln!("{reason}");
    }
    log::flush();
    tell(ServiceState::Stopped, outcome.is_err().into(), Duration::ZERO);
}

/// A service has no standard error: it writes to a file beside that of its [control](socket_path).
fn log_to_a_file() {
    let path = socket_path::default_path().with_file_name("flowgate.log");
    let opened = socket_path::prepare_directory(&path).and_then(|()| files::append_to(&path));
    // Without it nothing is logged.
    let _ = opened.and_then(process::log_to);
}
